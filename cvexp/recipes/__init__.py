"""The order of stages: plain functions ``recipe(make_trainer, task, data)``, a fresh Trainer for each stage that trains."""

from cvexp.recipes.alternating import alternating
from cvexp.recipes.bootstrap import bootstrap
from cvexp.recipes.end_to_end import end_to_end, test_only
from cvexp.recipes.latent_svm import latent_svm
from cvexp.recipes.rcnn import rcnn

__all__ = ["alternating", "bootstrap", "end_to_end", "latent_svm", "rcnn", "test_only"]
