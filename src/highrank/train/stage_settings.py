"""What a stage takes from the configuration: training and fine-tuning differ in nothing else."""

from dataclasses import dataclass

from highrank.runs import Config

__all__ = ["StageSettings"]


@dataclass(frozen=True)
class StageSettings:
    """What differs between training and fine-tuning."""

    epochs: int
    lr: float
    nonmono: int
    averaging: bool  # from the first step on
    stop_when_stalled: bool  # or else start averaging
    keep_start: bool  # the model that the stage starts from counts as epoch 0: it stays the best until it is beaten
    average_from: int  # the epoch in which averaging starts at the latest; 0: only when stalled
    schedule: str
    warmup: float

    @classmethod
    def of(cls, config: Config, stage: str) -> "StageSettings":
        if stage == "train":
            train = config.train
            return cls(
                train.epochs,
                train.lr,
                train.nonmono,
                averaging=train.average_from == 1,
                stop_when_stalled=False,
                keep_start=False,
                average_from=train.average_from,
                schedule=train.schedule,
                warmup=train.warmup,
            )
        tune = config.finetune
        return cls(
            tune.epochs,
            tune.lr,
            tune.nonmono,
            averaging=True,
            stop_when_stalled=True,
            keep_start=True,
            average_from=0,
            schedule="constant",
            warmup=0.0,
        )
