"""
Step by step from the URL to the round trip of a broadcast: what works, what does not, and what to do about it.

```python
from rtpool.doctor import Case, Examination

report = Examination(Case("https://abc.supabase.co", key)).run()
print(report.ok, [step.name for step in report.steps if step.status == "failed"])
```
"""

from __future__ import annotations

from rtpool.doctor.case import Case
from rtpool.doctor.examination import CHECKS, Check, Examination
from rtpool.doctor.report import Report, Step

__all__ = ["CHECKS", "Case", "Check", "Examination", "Report", "Step"]
