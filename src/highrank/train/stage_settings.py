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
    # From a trained model, which counts as epoch 0: it stays the best until it is beaten, and a stall ends the stage.
    # Or else a stall starts averaging.
    starts_trained: bool
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
                starts_trained=False,
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
            starts_trained=True,
            average_from=0,
            schedule="constant",
            warmup=0.0,
        )
