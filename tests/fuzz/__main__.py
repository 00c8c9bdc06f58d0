"""
Fuzz the protocol layer: `python -m tests.fuzz [frames|serializer|session …] [--seconds N] [--seed N]`.

With atheris (`pip install atheris`; Linux on x86-64, Pythons 3.10 to 3.13) the search is led by coverage, without it by
what the inputs make happen. An input that fails is written to a file; `--replay FILE` runs it once more.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pathlib
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import traceback

NAMES = ["frames", "serializer", "session"]
#: An input that takes so many seconds, or bytes of address space, is a failure.
SLOW, MEMORY = 10, 4 << 30


def main(arguments: list[str]) -> int:
    """The exit code: 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(NAMES)}; all of them by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run; a fresh one is printed otherwise")
    parser.add_argument("--engine", choices=["atheris", "random"], default=None, help="atheris where it is installed")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="folder for inputs that fail")
    parser.add_argument(
        "--replay", type=pathlib.Path, default=None, help="a file with an input; run it and nothing else"
    )
    options = parser.parse_args(arguments)
    targets = options.targets or NAMES
    if set(targets) - set(NAMES):
        parser.error(f"a target is one of {', '.join(NAMES)}")
    if options.replay is not None:
        return replay(options.targets, options.replay)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    folder = options.out or pathlib.Path(tempfile.mkdtemp(prefix="rtpool-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "random")
    print(f"engine {engine}, seed {seed}, failing inputs in {folder}", flush=True)
    if engine == "random":
        return max([at_random(name, options.seconds, seed, folder) for name in targets])
    if len(targets) == 1:
        by_coverage(targets[0], int(options.seconds), seed, folder)
    more = ["--engine", engine, "--seconds", str(options.seconds), "--seed", str(seed), "--out", str(folder)]
    commands = [[sys.executable, "-m", "tests.fuzz", name, *more] for name in targets]
    return max([subprocess.run(command, check=False).returncode for command in commands])  # it ends its process


def at_random(name: str, seconds: float, seed: int, folder: pathlib.Path) -> int:
    """Run one target; 1 when it failed."""
    from tests.fuzz import corpus, engine, targets

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, too_slow)
    seeds = corpus.seeds(name)
    until = time.monotonic() + seconds

    def go_on(report: engine.Report) -> bool:
        signal.alarm(SLOW)
        return time.monotonic() < until

    try:
        report = engine.run(name, targets.TARGETS[name], seeds, seed, go_on)
    except engine.Failure as failure:
        path = folder / f"{name}-{hashlib.blake2b(failure.data, digest_size=6).hexdigest()}"
        path.write_bytes(failure.data)
        traceback.print_exception(failure.__cause__)
        print(f"{failure}\nagain with: python -m tests.fuzz --replay {path}")
        return 1
    finally:
        signal.alarm(0)
    print(
        f"{name}: {report.tried} inputs, {report.outcomes} outcomes, slowest {report.slowest * 1000:.1f} ms", flush=True
    )
    return 0


def too_slow(signum: int, frame: object) -> None:
    """An input takes too long, which is a failure of its own."""
    raise AssertionError(f"over {SLOW} s")


def by_coverage(name: str, seconds: int, seed: int, folder: pathlib.Path) -> None:
    """Run one target under atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["rtpool.protocol", "websocket"]):
        from tests.fuzz import corpus, targets
    known = pathlib.Path(tempfile.mkdtemp(prefix="rtpool-corpus-"))
    for index, data in enumerate(corpus.seeds(name)):
        (known / f"seed-{index}").write_bytes(data)
    words = known.parent / f"{known.name}.dict"
    quoted = ["".join(rf"\x{byte:02x}" for byte in word[:60]) for word in corpus.DICTIONARY]
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    settings = [
        f"-max_total_time={seconds}",
        f"-seed={seed or 1}",
        f"-artifact_prefix={folder}/{name}-",
        f"-dict={words}",
    ]
    settings += [
        "-max_len=8192",
        f"-timeout={SLOW}",
        f"-rss_limit_mb={MEMORY >> 20}",
        "-print_final_stats=1",
        str(known),
    ]

    def one(data: bytes) -> None:
        targets.TARGETS[name](data)

    atheris.Setup([sys.argv[0], *settings], one)
    atheris.Fuzz()


def replay(names: list[str], path: pathlib.Path) -> int:
    """Run one input; its name says for which target when `names` does not."""
    from tests.fuzz import targets

    name = names[0] if names else path.name.split("-")[0]
    try:
        outcome = targets.TARGETS[name](path.read_bytes())
    except Exception:
        traceback.print_exc()
        return 1
    print(f"{name}: {outcome!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
