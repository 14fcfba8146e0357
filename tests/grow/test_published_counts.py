"""All 65 configurations whose counts pycls publishes, to the last digit.

github.com/facebookresearch/pycls, ``dev/model_complexity.json``: flops, activations, parameters. What is
configured twice there (one, two and eight GPUs; ResNet written as a network in stages) is one row here.
"""

import pytest

from allometry.grow import configuration_counts
from allometry.models import EfficientNetConfig, RegNetConfig, regnet_config, resnet_config


def _cifar(depth, block="basic"):
    """ResNet for images of 32 pixels, (depth - 2) / 6 blocks a stage; or the same without shortcuts."""
    blocks = (depth - 2) // 6
    return RegNetConfig(
        (16, 32, 64), (blocks,) * 3, strides=(1, 2, 2), stem="small", stem_width=16, block=block,
        resolution=32, classes=10,
    )  # fmt: skip


def _efficientnet(resolution, depths, widths, stem, head):
    return EfficientNetConfig(widths, depths, stem_width=stem, head_width=head, resolution=resolution)


# configuration, how many of the 65 it is, flops, activations, parameters
PUBLISHED = {
    "R-110": (_cifar(110), 2, 253_149_834, 1_060_874, 1_730_714),
    "R-56": (_cifar(56), 2, 125_747_850, 544_778, 855_770),
    "V-56": (_cifar(56, "plain"), 1, 125_485_706, 532_490, 853_018),
    "R-101-1x64d": (resnet_config(101), 7, 7_801_406_440, 16_433_640, 44_549_160),
    "R-50-1x64d": (resnet_config(50), 7, 4_089_185_256, 11_315_688, 25_557_032),
    "X-101-32x4d": (resnet_config(101, groups=32, group_width=4), 7, 7_969_997_800, 21_426_152, 44_177_704),
    "X-50-32x4d": (resnet_config(50, groups=32, group_width=4), 7, 4_230_480_872, 14_602_216, 25_028_904),
    "EN-B0": (
        _efficientnet(224, (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 32, 1280),
        1, 385_825_092, 6_748_036, 5_288_548,
    ),
    "EN-B1": (
        _efficientnet(240, (2, 3, 3, 4, 4, 5, 2), (16, 24, 40, 80, 112, 192, 320), 32, 1280),
        1, 686_817_992, 10_884_328, 7_794_184,
    ),
    "EN-B2": (
        _efficientnet(260, (2, 3, 3, 4, 4, 5, 2), (16, 24, 48, 88, 120, 208, 352), 32, 1408),
        1, 993_578_282, 13_832_834, 9_109_994,
    ),
    "EN-B3": (
        _efficientnet(300, (2, 3, 3, 5, 5, 6, 2), (24, 32, 48, 96, 136, 232, 384), 40, 1536),
        1, 1_827_162_472, 23_831_296, 12_233_232,
    ),
    "EN-B4": (
        _efficientnet(380, (2, 4, 4, 6, 6, 8, 2), (24, 32, 56, 112, 160, 272, 448), 48, 1792),
        1, 4_393_801_064, 49_489_032, 19_341_616,
    ),
    "EN-B5": (
        _efficientnet(456, (3, 5, 5, 7, 7, 9, 3), (24, 40, 64, 128, 176, 304, 512), 48, 2048),
        1, 10_266_426_072, 98_857_400, 30_389_784,
    ),
    "RegNetX-1.6GF": (regnet_config("X-1.6GF"), 1, 1_602_850_792, 7_933_512, 9_190_136),
    "RegNetX-12GF": (regnet_config("X-12GF"), 1, 12_086_679_016, 21_366_568, 46_106_056),
    "RegNetX-16GF": (regnet_config("X-16GF"), 1, 15_940_756_456, 25_515_496, 54_278_536),
    "RegNetX-200MF": (regnet_config("X-200MF"), 1, 199_040_872, 2_164_056, 2_684_792),
    "RegNetX-3.2GF": (regnet_config("X-3.2GF"), 1, 3_176_622_952, 11_367_432, 15_296_552),
    "RegNetX-32GF": (regnet_config("X-32GF"), 1, 31_735_930_792, 36_302_160, 107_811_560),
    "RegNetX-4.0GF": (regnet_config("X-4.0GF"), 1, 3_964_499_816, 12_201_608, 22_118_248),
    "RegNetX-400MF": (regnet_config("X-400MF"), 1, 397_678_568, 3_143_272, 5_157_512),
    "RegNetX-6.4GF": (regnet_config("X-6.4GF"), 1, 6_460_292_264, 16_369_744, 26_209_256),
    "RegNetX-600MF": (regnet_config("X-600MF"), 1, 600_891_112, 3_975_096, 6_196_040),
    "RegNetX-8.0GF": (regnet_config("X-8.0GF"), 1, 7_995_133_416, 14_059_688, 39_572_648),
    "RegNetX-800MF": (regnet_config("X-800MF"), 1, 799_700_712, 5_148_744, 7_259_656),
    "RegNetY-1.6GF": (regnet_config("Y-1.6GF"), 1, 1_612_087_326, 8_044_814, 11_202_430),
    "RegNetY-12GF": (regnet_config("Y-12GF"), 1, 12_092_395_504, 21_384_496, 51_822_544),
    "RegNetY-16GF": (regnet_config("Y-16GF"), 1, 15_911_534_044, 23_041_228, 83_590_140),
    "RegNetY-200MF": (regnet_config("Y-200MF"), 1, 199_519_076, 2_168_052, 3_162_996),
    "RegNetY-3.2GF": (regnet_config("Y-3.2GF"), 1, 3_176_496_162, 11_263_418, 19_436_338),
    "RegNetY-32GF": (regnet_config("Y-32GF"), 1, 32_279_583_362, 30_261_570, 145_046_770),
    "RegNetY-4.0GF": (regnet_config("Y-4.0GF"), 1, 3_973_301_344, 12_287_200, 20_646_656),
    "RegNetY-400MF": (regnet_config("Y-400MF"), 1, 401_849_056, 3_892_496, 4_344_144),
    "RegNetY-6.4GF": (regnet_config("Y-6.4GF"), 1, 6_355_221_876, 16_407_188, 30_583_252),
    "RegNetY-600MF": (regnet_config("Y-600MF"), 1, 601_227_608, 4_334_296, 6_055_160),
    "RegNetY-8.0GF": (regnet_config("Y-8.0GF"), 1, 7_963_074_196, 17_968_916, 39_180_068),
    "RegNetY-800MF": (regnet_config("Y-800MF"), 1, 797_183_328, 5_249_888, 6_263_168),
    "R-152-1x64d": (resnet_config(152), 1, 11_513_627_624, 22_755_816, 60_192_808),
    "X-152-32x4d": (resnet_config(152, groups=32, group_width=4), 1, 11_709_514_728, 29_855_720, 59_951_400),
}  # fmt: skip


def test_there_are_65():
    assert sum(row[1] for row in PUBLISHED.values()) == 65


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_integers(name):
    config, _, flops, activations, parameters = PUBLISHED[name]
    counts = configuration_counts(config)
    assert (counts.flops, counts.activations, counts.parameters) == (flops, activations, parameters)
