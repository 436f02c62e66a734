"""timm ResNets with the same interface as the ViTs."""

from __future__ import annotations

import timm
from torch import nn

from stabilitylab.config import ModelConfig


def build_resnet(config: ModelConfig, channels: int) -> nn.Module:
    """Build an encoder (N, channels, S, S) -> (N, ``num_features``). For images of 64 pixels or less it has the usual
    small-image stem: a 3x3 convolution of stride 1 and no max pooling (SimCLR, appendix B.9)."""
    net = timm.create_model(config.arch, pretrained=False, num_classes=0, in_chans=channels)
    if config.img_size <= 64:
        width = int(net.get_parameter("conv1.weight").shape[0])
        net.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return net
