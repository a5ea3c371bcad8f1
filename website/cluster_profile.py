"""The reference of a cluster profile, from the dataclass that reads its TOML file."""

from __future__ import annotations

from dataclasses import MISSING, fields

from slurm.profile import EXECUTORS, FOLDER, Profile
from website.docstrings import meaning
from website.tables import code, source_link, table

PLACE = "reference/cluster_profile.md"
BEGIN = """\
# Keys of a cluster profile

A profile is a TOML file that `launcher submit --cluster` names; [how it is used](../slurm.md). The
executor is one of {executors}. Profiles that ship: {shipped}. Read by {source}.

"""


def pages() -> dict[str, str]:
    """Return the page of a profile's keys by its place in the site."""
    rows = []
    for each in fields(Profile):
        made = each.default if each.default_factory is MISSING else each.default_factory()
        default = list(made) if isinstance(made, tuple) else made
        rows.append((code(each.name), code(default), meaning(Profile, each.name)))
    shipped = (
        f"[`{path.stem}`](../../slurm/profiles/{path.name})"
        for path in sorted(FOLDER.glob("*.toml"))
    )
    begin = BEGIN.format(
        executors=", ".join(map(code, EXECUTORS)),
        shipped=", ".join(shipped),
        source=source_link(Profile, depth=1),
    )
    return {PLACE: begin + table(("key", "default", "meaning"), rows)}
