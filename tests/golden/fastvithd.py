"""FastVLM's tower FastViTHD as PyTorch modules, in the form that is trained and in the one that is published.

Parameter names equal those of the original checkpoints after `model.vision_tower.vision_tower.model.`.
Each `merge` is the published re-parameterisation: the branches of a convolution become one kernel.
"""

import torch
from torch import nn

HEAD_DIM = 32


def conv(inputs, outputs, kernel, stride=1, groups=1, bias=True):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


class ConvNorm(nn.Sequential):
    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        super().__init__()
        self.add_module("conv", conv(inputs, outputs, kernel, stride, groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))


def identity(channels, groups, kernel):
    """The kernel that changes nothing."""
    width = channels // groups
    out = torch.zeros(channels, width, kernel, kernel)
    for i in range(channels):
        out[i, i % width, kernel // 2, kernel // 2] = 1
    return out


def folded(kernel, norm, size):
    """A kernel and the batch norm behind it as one kernel of that size, and a bias."""
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    pad = (size - kernel.shape[-1]) // 2
    kernel = nn.functional.pad(kernel, [pad] * 4)
    return kernel * factor[:, None, None, None], norm.bias - norm.running_mean * factor


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        inner = int(channels * 0.0625)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x):
        gate = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(gate))))


class MobileOne(nn.Module):
    """A convolution that is trained as a sum: itself, a pointwise one, the input; each behind a batch norm."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, scale=True, convs=1, squeeze=False, act=True):
        super().__init__()
        self.sizes = inputs, outputs, kernel, stride, groups
        if squeeze:
            self.se = SqueezeExcite(outputs)
        self.activation = nn.GELU() if act else nn.Identity()
        if inputs == outputs and stride == 1:
            self.rbr_skip = nn.BatchNorm2d(inputs)
        if convs:
            self.rbr_conv = nn.ModuleList(ConvNorm(*self.sizes) for _ in range(convs))
        if scale and kernel > 1:
            self.rbr_scale = ConvNorm(inputs, outputs, 1, stride, groups)

    def forward(self, x):
        if hasattr(self, "reparam_conv"):
            y = self.reparam_conv(x)
        else:
            y = sum(branch(x) for branch in getattr(self, "rbr_conv", ()))
            if hasattr(self, "rbr_scale"):
                y = y + self.rbr_scale(x)
            if hasattr(self, "rbr_skip"):
                y = y + self.rbr_skip(x)
        return self.activation(self.se(y) if hasattr(self, "se") else y)

    def kernel_and_bias(self):
        inputs, _, size, _, groups = self.sizes
        parts = [folded(b.conv.weight, b.bn, size) for b in getattr(self, "rbr_conv", ())]
        if hasattr(self, "rbr_scale"):
            parts.append(folded(self.rbr_scale.conv.weight, self.rbr_scale.bn, size))
        if hasattr(self, "rbr_skip"):
            parts.append(folded(identity(inputs, groups, size), self.rbr_skip, size))
        return sum(k for k, _ in parts), sum(b for _, b in parts)

    def merge(self):
        put(self, "reparam_conv", conv(*self.sizes), *self.kernel_and_bias())
        drop(self, "rbr_conv", "rbr_scale", "rbr_skip")


def put(module, name, layer, kernel, bias):
    layer.weight.data, layer.bias.data = kernel, bias
    module.add_module(name, layer)


def drop(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


class LargeKernel(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.sizes = inputs, outputs, 7, 2, inputs
        self.lkb_origin = ConvNorm(*self.sizes)
        self.small_conv = ConvNorm(inputs, outputs, 3, 2, inputs)

    def forward(self, x):
        if hasattr(self, "lkb_reparam"):
            return nn.functional.gelu(self.lkb_reparam(x))
        return nn.functional.gelu(self.lkb_origin(x) + self.small_conv(x))

    def merge(self):
        parts = [folded(b.conv.weight, b.bn, 7) for b in (self.lkb_origin, self.small_conv)]
        put(self, "lkb_reparam", conv(*self.sizes), sum(k for k, _ in parts), sum(b for _, b in parts))
        drop(self, "lkb_origin", "small_conv")


class PatchEmbed(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Sequential(LargeKernel(inputs, outputs), MobileOne(outputs, outputs, 1))

    def forward(self, x):
        return self.proj(x)


class RepMixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.norm = MobileOne(width, width, 3, groups=width, scale=False, convs=0, act=False)
        self.mixer = MobileOne(width, width, 3, groups=width, act=False)
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv(x)
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))

    def merge(self):
        (kernel, bias), (norm_kernel, norm_bias) = self.mixer.kernel_and_bias(), self.norm.kernel_and_bias()
        kernel = identity(self.width, self.width, 3) + self.layer_scale[..., None] * (kernel - norm_kernel)
        bias = self.layer_scale[:, 0, 0] * (bias - norm_bias)
        put(self, "reparam_conv", conv(self.width, self.width, 3, groups=self.width), kernel, bias)
        drop(self, "mixer", "norm", "layer_scale")


class ConvFfn(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.conv = ConvNorm(width, width, 7, groups=width)
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(self.conv(x))))


class Positions(nn.Module):
    """RepCPE: a depthwise convolution added to its input."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.pe = conv(width, width, 7, groups=width)

    def forward(self, x):
        return self.reparam_conv(x) if hasattr(self, "reparam_conv") else self.pe(x) + x

    def merge(self):
        kernel = identity(self.width, self.width, 7) + self.pe.weight
        layer = conv(self.width, self.width, 7, groups=self.width)
        put(self, "reparam_conv", layer, kernel, self.pe.bias.data)
        drop(self, "pe")


class MixerBlock(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.token_mixer = RepMixer(width)
        self.convffn = ConvFfn(width, inner)
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        x = self.token_mixer(x)
        return x + self.layer_scale * self.convffn(x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, width, height, across = x.shape
        rows = x.flatten(2).transpose(1, 2)
        parts = self.qkv(rows).reshape(batch, -1, 3, width // HEAD_DIM, HEAD_DIM).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        scores = (query * HEAD_DIM**-0.5) @ key.transpose(-2, -1)
        rows = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, -1, width)
        return self.proj(rows).transpose(1, 2).reshape(batch, width, height, across)


class AttentionBlock(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.token_mixer = Attention(width)
        self.convffn = ConvFfn(width, inner)
        self.layer_scale_1 = nn.Parameter(torch.ones(width, 1, 1))
        self.layer_scale_2 = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.layer_scale_1 * self.token_mixer(normed)
        return x + self.layer_scale_2 * self.convffn(x)


class FastVitHd(nn.Module):
    """A picture to a map of features, 64 pixels a side each where there are five stages."""

    def __init__(self, layers, embed_dims, mlp_ratios, token_mixers, pos_embs_shapes, cls_ratio, **_):
        super().__init__()
        first = embed_dims[0]
        self.patch_embed = nn.Sequential(
            MobileOne(3, first, 3, 2, scale=False),
            MobileOne(first, first, 3, 2, groups=first, scale=False),
            MobileOne(first, first, 1, scale=False),
        )
        network = []
        for i, (depth, width) in enumerate(zip(layers, embed_dims, strict=True)):
            if i:
                network.append(PatchEmbed(embed_dims[i - 1], width))
            if pos_embs_shapes[i]:
                network.append(Positions(width))
            block = {"repmixer": MixerBlock, "attention": AttentionBlock}[token_mixers[i]]
            inner = int(width * mlp_ratios[i])
            network.append(nn.Sequential(*(block(width, inner) for _ in range(depth))))
        self.network = nn.ModuleList(network)
        width = embed_dims[-1]
        self.conv_exp = MobileOne(width, int(width * cls_ratio), 3, groups=width, squeeze=True)

    def forward(self, pixels):
        x = self.patch_embed(pixels)
        for part in self.network:
            x = part(x)
        return self.conv_exp(x).flatten(2).transpose(1, 2)  # [pictures, features, width]

    def merge(self):
        """To the published form."""
        merge = MobileOne, LargeKernel, RepMixer, Positions
        inner = {id(part) for m in self.modules() if isinstance(m, RepMixer) for part in (m.norm, m.mixer)}
        for module in list(self.modules()):
            if isinstance(module, merge) and id(module) not in inner:
                module.merge()
        return self
