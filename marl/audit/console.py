"""The report on the console."""

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from marl.audit.report import Report
from marl.audit.sections import Section, sections


def show(report: Report, console: Console) -> None:
    """Print the tables and notes of a report."""
    title = f"{report.run}: {report.algorithm} on {report.env}, labeller {report.labeller}"
    console.print(Text(title, "bold"), soft_wrap=True)
    for section in sections(report):
        console.print(table(section))
    for note in report.notes:
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)


def table(section: Section) -> Table:
    """Return a section as a table; foreign text in it is taken literally."""
    made = Table(title=Text(section.title), title_justify="left", title_style="bold")
    for index, heading in enumerate(section.headings):
        made.add_column(Text(heading), overflow="fold", no_wrap=index == 0)
    for row in section.rows:
        cells: list[RenderableType] = [Text(cell) for cell in row]
        made.add_row(*cells)
    return made
