"""The line that says how far one has come."""


def pytest_terminal_summary(terminalreporter):
    right, wrong, left = (sum("::test_exercise[" in report.nodeid for report in
                              terminalreporter.stats.get(outcome, []))
                          for outcome in ("passed", "failed", "skipped"))
    if right + wrong + left:
        come = f"{right + wrong} of {right + wrong + left} attempted"
        rest = f", {right} right" if right + wrong else ": edit docs/exercises/answers.py"
        terminalreporter.section(come + rest)
