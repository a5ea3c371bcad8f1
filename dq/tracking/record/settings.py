"""The config's ``tracking`` section."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """The settings of tracking: what is recorded, and where it is sent.

    Attributes:
        project: W&B's project; None for ``WANDB_PROJECT``, else ``dq-launcher``.
        entity: W&B's team or user; None for the default.
        experiment: Name that its stages share; None for the work dir's name.
        tags: Words to find runs by.
        quantizer_images: Number of images to measure all quantizers on after each epoch; 0 for off.
        prediction_images: Number of test images to keep with their boxes; 0 for none.
        init_s: Seconds that W&B may take to start a run.
        finish_s: Seconds that the end of a command may wait for W&B.
    """

    project: str | None = field(default=None, metadata={"digits": True})
    entity: str | None = field(default=None, metadata={"digits": True})
    experiment: str | None = field(default=None, metadata={"digits": True})
    tags: tuple[str, ...] = field(default=(), metadata={"one": True})
    quantizer_images: int = 4
    prediction_images: int = 8
    init_s: float = 20.0
    finish_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("project", "entity", "experiment"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else str(value))
        for name in ("quantizer_images", "prediction_images"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"tracking.{name} is {value!r}; give a number from 0 up")
        for name in ("init_s", "finish_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"tracking.{name} is {getattr(self, name)!r}; give seconds")
