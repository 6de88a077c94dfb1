"""The moving average against a plain loop, and what is saved."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from cvexp.callbacks.ema import EMA


class Line(LightningModule):
    """One weight that falls by 1 in every step: 0, -1, -2 ..."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen_in_validation: list[float] = []

    def training_step(self, *_):
        return self.weight.sum()

    def validation_step(self, *_):
        self.seen_in_validation.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(tmp_path, ema: EMA, **options) -> tuple[Line, Trainer]:
    data = torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=1)
    module = Line()
    trainer = Trainer(
        callbacks=[ema], max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module, data, data)
    return module, trainer


@pytest.mark.filterwarnings("ignore")
def test_the_average_of_a_plain_loop(tmp_path) -> None:
    module, _ = fit(tmp_path, EMA(decay=0.9, warmup=10))
    average = 0.0
    for n in range(4):  # after step n the weight is -(n + 1)
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * -(n + 1)
    assert module.weight.item() == pytest.approx(average)  # training ends with the average
    assert module.seen_in_validation == [pytest.approx(average)] * 4  # and validation has seen it


@pytest.mark.filterwarnings("ignore")
def test_accumulated_gradients_count_once(tmp_path) -> None:
    ema = EMA()
    fit(tmp_path, ema, accumulate_grad_batches=2)
    assert ema.updates == 2


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_holds_the_average_and_what_goes_on(tmp_path) -> None:
    ema = EMA(decay=0.9)
    module, trainer = fit(tmp_path, ema)
    checkpoint = {"state_dict": {"weight": torch.tensor([-4.0])}}
    ema.on_save_checkpoint(trainer, module, checkpoint)
    assert checkpoint["current_model_state"]["weight"].item() == -4.0
    assert checkpoint["state_dict"]["weight"].item() == pytest.approx(module.weight.item())
