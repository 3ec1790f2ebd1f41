"""What the processes of tests/forked.py have imported when they are forked.

No thread runs by then but one of jemalloc (of pyarrow), which knows of forks.
"""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # before anything asks for the accelerator

import deepspeed  # noqa: F401
import mlflow  # noqa: F401
import pytest  # noqa: F401
import torch

import training.launch  # noqa: F401
from training.model.hyperclip import HyperClip
from training.model.registry import hyperclip_test

torch.set_num_threads(1)  # or this process would have others
HyperClip(hyperclip_test())  # imports timm, which the model does when it needs it
