"""Put the classes of a folder into another order: that of a detector that is already trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dq.counted import counted
from dq.data.formats.labelled import Labelled
from dq.names import hint


def in_order(labelled: Labelled, names: Sequence[str]) -> Labelled:
    """Return the folder's content with its classes in this order.

    Args:
        labelled: The content of a folder.
        names: All classes that have a box, and any others.

    Raises:
        ValueError: A class that has boxes is not among the names, or one is named twice.
    """
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"--classes names {twice[0]} more than once; name each class once")
    boxes = Counter(box.name for photo in labelled.photos for box in photo.boxes)
    for name in labelled.classes:
        if boxes[name] and name not in names:
            raise ValueError(
                f"--classes leaves out {name}, which {counted(boxes[name], 'box[es] [has|have]')};"
                f" {hint(name, names)}"
            )
    return replace(labelled, classes=tuple(names))
