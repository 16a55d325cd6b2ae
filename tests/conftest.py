"""What all rooms' tests share: one thread, so that figures and timings do not depend on the machine's load."""

import torch

torch.set_num_threads(1)
