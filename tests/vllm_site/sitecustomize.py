"""For an environment with vLLM on the CPU: lets torchvision be imported there.

Its wheel is built for CUDA, and beside a torch for the CPU its operators do not load; importing it
needs no more than that these two have been declared. Python runs this file first where its folder
is in PYTHONPATH.
"""

import torch

torchvision = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
