"""The project keeps its own rules: examples run, the README is true, layers hold, what is public is documented."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import rtpool
import rtpool.debug
from rtpool.testing import PushReply, RealtimeServer

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if not p.name.startswith("_"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


#: Defaults the README shows in a friendlier form.
SHOWN = {
    "max_message_size": "5 MiB",
    "max_payload_size": "3,000,500",
    "max_frame_size": "5,000,000",
    "mailbox_limit": "10,000",
    "reconnect": "ReconnectPolicy()",
}


def run(arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE")}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **env},
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs_as_it_is(example: pathlib.Path) -> None:
    done = run([str(example)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs_against_a_given_project(example: pathlib.Path, server: RealtimeServer) -> None:
    with RealtimeServer(plain_phoenix=True) as phoenix:
        phoenix.on_push = lambda topic, event, payload, connection: PushReply({})
        theirs = {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key, "PHOENIX_URL": f"{phoenix.url}/socket"}
        done = run([str(example)], **theirs)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.connections_total + len(server.requests) + phoenix.connections_total > 0


def test_there_is_an_example_for_each_thing_promised() -> None:
    promised = "quickstart many_channels shared_pool iterate clean_shutdown table_changes who_is_online plain_phoenix"
    assert {e.stem for e in EXAMPLES} >= {*promised.split(), "private_and_replayed", "without_a_subscription"}


@pytest.mark.parametrize("block", [b for b in BLOCKS if "def test_" not in b], ids=lambda b: b.split("\n")[2][:40])
def test_a_block_of_the_readme_runs(block: str, server: RealtimeServer) -> None:
    done = run(["-c", block], SUPABASE_URL=server.url, SUPABASE_KEY=server.api_key)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_readmes_tests_pass_with_the_fixture_that_pytest_finds_by_itself(pytester: pytest.Pytester) -> None:
    blocks = [b for b in BLOCKS if "def test_" in b]
    assert len(blocks) == 2
    pytester.makepyfile(*blocks[:1], test_faults=blocks[1])
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=2)


def test_the_readmes_option_table_is_the_options() -> None:
    section = README.split("## Options")[1].split("\n## ")[0]
    cells = [row.split("|")[1:3] for row in section.splitlines() if row.startswith("| `")]
    named = {name for names, _ in cells for name in re.findall(r"`(\w+)`", names)}
    assert named == set(rtpool.options._NAMES)
    defaults = rtpool.PoolOptions()
    for names, values in cells:
        keys = re.findall(r"`(\w+)`", names)
        shown = [v.strip().strip("`") for v in re.split(r", (?![0-9]{3})", values.strip())]
        for key, text in zip(keys, shown, strict=True):
            assert text == SHOWN.get(key, repr(getattr(defaults, key)).replace("'", '"')), key


def test_the_readmes_error_table_names_every_error_and_its_builtin() -> None:
    section = README.split("## Errors")[1].split("\n## ")[0]
    named: set[str] = set()
    for row in section.splitlines():
        if row.startswith("| `"):
            cells = row.split("|")
            errors, builtins = re.findall(r"`(\w+)`", cells[1]), re.findall(r"`(\w+)`", cells[2])
            named |= set(errors)
            for index, error in enumerate(errors):
                if builtins:
                    builtin = builtins[min(index, len(builtins) - 1)]
                    assert issubclass(getattr(rtpool, error), getattr(__import__("builtins"), builtin)), error
    leaves = {n for n in rtpool.errors.__all__ if n not in ("RtpoolError", "ProtocolError")}
    assert named == leaves


def test_the_readmes_table_of_issues_is_the_catalogue() -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in README.splitlines() if row.startswith("| RTP")]
    known = [[c.code, str(c.severity), c.title, c.meaning, c.advice] for c in rtpool.debug.CODES.values()]
    assert rows == known


def test_the_readme_names_tests_that_exist() -> None:
    for path in set(re.findall(r"`(tests/[\w/]+\.py)`", README)):
        assert (ROOT / path).is_file(), path


def test_the_layers_hold() -> None:
    script = pathlib.Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(script), "--config", "setup.cfg", "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_protocol_layer_imports_nothing_that_acts() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    banned = set(config["importlinter:contract:sans-io"]["forbidden_modules"].split())
    for path in (ROOT / "rtpool" / "protocol").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & banned, path.name


def modules() -> list[str]:
    skipped = {"rtpool.__main__"}
    found = pkgutil.walk_packages(rtpool.__path__, "rtpool.")
    return [m.name for m in found if m.name not in skipped]


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_is_public_and_documents_it(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "a module without a word"
    if not hasattr(module, "__all__"):
        assert name in ("rtpool.protocol", "rtpool.engine")
        return
    assert list(module.__all__) == sorted(module.__all__)
    for public in module.__all__:
        thing = getattr(module, public)
        if isinstance(thing, type) and thing.__module__.startswith("rtpool"):
            assert thing.__doc__, public
            for attribute, value in vars(thing).items():
                if callable(value) and not attribute.startswith("_") and not hasattr(value, "__attrs_attrs__"):
                    assert value.__doc__ or attribute in ("encode", "decode", "decode_all"), f"{public}.{attribute}"
        elif callable(thing) and getattr(thing, "__module__", "").startswith("rtpool"):
            assert thing.__doc__, public


def test_the_top_level_exports_what_it_says_and_every_error() -> None:
    assert sorted(rtpool.__all__) == rtpool.__all__
    assert set(rtpool.errors.__all__) <= set(rtpool.__all__)
    assert set(rtpool.events.__all__) - {"Event"} <= set(rtpool.__all__)
    assert all(hasattr(rtpool, name) for name in rtpool.__all__)


def test_importing_rtpool_imports_no_extra_and_starts_nothing() -> None:
    code = (
        "import sys, threading, rtpool\n"
        "rtpool.RealtimePool\n"
        "extras = {'websockets', 'click', 'rich', 'flask', 'asyncio', 'pytest'} & set(sys.modules)\n"
        "assert not extras, extras\n"
        "assert not [n for n in sys.modules if n.startswith(('rtpool.debug', 'rtpool.testing', 'rtpool.cli'))]\n"
        "assert threading.active_count() == 1\n"
    )
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr


def test_the_pytest_plugin_harms_no_project_that_lacks_the_extra(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        conftest="import sys; sys.modules['websockets'] = None",
        test_theirs="def test_plain():\n    assert True\n\ndef test_served(realtime_server):\n    assert True\n",
    )
    code = "import sys; sys.modules['websockets'] = None; import pytest; sys.exit(pytest.main(['-p', 'no:randomly']))"
    result = pytester.run(sys.executable, "-c", code)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*pip install 'rtpool[[]testing]'*"])


def test_files_and_functions_stay_small() -> None:
    for path in (ROOT / "rtpool").rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 600, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno <= 80, f"{path.name}: {node.name}"
        banned = r"\btime\.sleep\((?!0\))|\bRLock\b|\btime\.time\("  # to sleep for no time is to let others go on
        assert not re.search(banned, text) or "testing" in path.parts, path.name
