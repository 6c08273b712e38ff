"""The LLaVA and MobileVLM projectors as PyTorch modules.

Parameter names equal those of the original checkpoints after `model.mm_projector.`.
"""

import torch
from torch import nn


def mlp2x_gelu(vision, text):
    """LLaVA-1.5: names 0.*, 2.*; GELU is the exact (erf) one."""
    return nn.Sequential(nn.Linear(vision, text), nn.GELU(), nn.Linear(text, text))


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of an NCHW map (eps 1e-5)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        scale = x.mean(dim=(2, 3), keepdim=True)
        scale = nn.functional.hardsigmoid(self.fc2(torch.relu(self.fc1(scale))))
        return x * scale


class InvertedResidual(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.residual = stride == 1
        depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, ChannelLayerNorm(channels), nn.Hardswish()),
            SqueezeExcite(channels),
            nn.Sequential(
                nn.Conv2d(channels, channels, 1, bias=False), ChannelLayerNorm(channels)
            ),
        )

    def forward(self, x):
        out = self.block(x)
        return x + out if self.residual else out


def to_map(x):
    batch, tokens, channels = x.shape
    side = int(tokens**0.5)
    assert side * side == tokens
    return x.transpose(1, 2).reshape(batch, channels, side, side)


def to_tokens(x):
    return x.flatten(2).transpose(1, 2)


class _Ldp(nn.Module):
    def __init__(self, vision, text):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Identity(), nn.Linear(vision, text), nn.GELU(), nn.Linear(text, text)
        )
        self.mb_block = nn.Sequential(
            nn.Identity(), InvertedResidual(text, 1), InvertedResidual(text, 2)
        )

    def forward(self, x):
        return to_tokens(self.mb_block(to_map(self.mlp(x))))


class LdpNet(nn.Module):
    """MobileVLM V1: names model.mlp.{1,3}.*, model.mb_block.{1,2}.block.*"""

    def __init__(self, vision, text):
        super().__init__()
        self.model = _Ldp(vision, text)

    def forward(self, x):
        return self.model(x)


class _Mlp(nn.Module):
    def __init__(self, vision, text):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(vision, text), nn.GELU(), nn.Linear(text, text))


class _Peg(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.peg = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=True)
        )


class LdpNetV2(nn.Module):
    """MobileVLM V2: names mlp.mlp.{0,2}.*, peg.peg.0.*

    The original pools with AdaptiveAvgPool2d((12, 12)), which is 2x2 means for its 24x24 grid;
    here the target is half the grid, whatever its size.
    """

    def __init__(self, vision, text):
        super().__init__()
        self.mlp = _Mlp(vision, text)
        self.peg = _Peg(text)

    def forward(self, x):
        x = to_map(self.mlp.mlp(x))
        half = x.shape[-1] // 2
        x = nn.functional.adaptive_avg_pool2d(x, (half, half))
        return to_tokens(self.peg.peg(x) + x)


PROJECTORS = {"mlp2x_gelu": mlp2x_gelu, "ldpnet": LdpNet, "ldpnetv2": LdpNetV2}
