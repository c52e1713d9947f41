"""Every timm family and torchvision's: the layer that is right, read in each model's source.

A row: timm's module (or torchvision's), a small model, mostly its smallest, what it is made
with, the images' size, and what `find_target_layer` must answer: layer, layout, grid. A
row without a layer is a refusal. `why` is a key of `WHY`.
"""

from typing import NamedTuple

WHY = {
    "stage": "the last stage; only pooling and the head follow",
    "conv": "the last convolution, with its norm, before pooling",
    "norm": "the last stage after its final norm, before pooling",
    "nhwc": "the last stage after its final norm, channels last",
    "swin": "the last stage, channels last; only pooling and the head follow",
    "cls": "after it only the class token reaches the logits",
    "avg": "the last block; all its patches are averaged",
    "gather": "the last block of patches; class attention then gathers them",
    "tokens": "the last stage after its final norm; all its tokens are averaged",
    "encoder": "the encoder's patches, which are averaged as they are",
    "scores": "a 1×1 convolution to a map for each class, which is averaged",
    "beside": "refused: streams of tokens side by side, joined by class tokens only",
}


class Row(NamedTuple):
    """One family."""

    module: str
    model: str
    options: dict
    size: tuple
    layer: str
    kind: str
    grid: tuple
    why: str


S, L = (96, 96), (160, 160)
# Too large for a test, or too slow: the same code with fewer and narrower blocks.
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}


def _img(height, width=None):
    return {"img_size": (height, width or height)}


TIMM = [
    Row(*row)
    for row in (
        ("beit", "beit_base_patch16_224", {**_img(64), **SMALL}, (64, 64), "blocks.1", "tokens",
         (4, 4), "avg"),
        ("byoanet", "eca_botnext26ts_256", {}, (256, 256), "stages", "NCHW", (8, 8), "stage"),
        ("byoanet", "halonet_h1", {}, (256, 256), "stages", "NCHW", (8, 8), "stage"),
        ("byobnet", "test_byobnet", {}, S, "stages", "NCHW", (3, 3), "stage"),
        ("cait", "cait_xxs24_224", _img(64), (64, 64), "blocks.23", "tokens", (4, 4), "gather"),
        ("coat", "coat_tiny", _img(96), S, "", "", (), "beside"),
        ("coat", "coat_lite_tiny", _img(96, 128), (96, 128), "serial_blocks4.1.norm1", "tokens",
         (3, 4), "cls"),
        ("convit", "convit_tiny", _img(64), (64, 64), "blocks.11.norm1", "tokens", (4, 4), "cls"),
        ("convmixer", "convmixer_768_32", {}, (35, 35), "blocks.31", "NCHW", (5, 5), "stage"),
        ("convnext", "test_convnext", {}, (96, 160), "stages.3", "NCHW", (3, 5), "stage"),
        ("cpubone", "cpubone_nano", {}, S, "head.in_conv", "NCHW", (3, 3), "conv"),
        ("crossvit", "crossvit_tiny_240", _img(120), (120, 120), "", "", (), "beside"),
        ("csatv2", "csatv2", {}, (192, 192), "stages.3", "NCHW", (3, 3), "stage"),
        ("cspnet", "cs3darknet_focus_s", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("cspnext", "cspnext_tiny", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("davit", "davit_tiny", {}, (96, 128), "stages.3", "NCHW", (3, 4), "stage"),
        ("deepseek_vit", "deepseek_vit_412m", {**_img(56, 84), **SMALL}, (56, 84), "encoder",
         "NHWC", (4, 6), "encoder"),
        ("deit", "deit_tiny_patch16_224", _img(64), (64, 64), "blocks.11.norm1", "tokens", (4, 4),
         "cls"),
        ("densenet", "densenet121", {}, S, "features.norm5", "NCHW", (3, 3), "norm"),
        ("dla", "dla46x_c", {}, S, "level5", "NCHW", (3, 3), "stage"),
        ("dpn", "dpn48b", {}, S, "features", "NCHW", (3, 3), "norm"),
        ("edgenext", "edgenext_xx_small", {}, (96, 160), "stages.3", "NCHW", (3, 5), "stage"),
        ("efficientformer", "efficientformer_l1", {}, (224, 224), "stages.3", "tokens", (7, 7),
         "avg"),
        ("efficientformer_v2", "efficientformerv2_s0", _img(96), S, "norm", "NCHW", (3, 3),
         "norm"),
        ("efficientnet", "test_efficientnet", {}, S, "bn2", "NCHW", (3, 3), "conv"),
        ("efficientvim", "efficientvim_m1", {}, (192, 192), "norm.3", "NCHW", (3, 3), "norm"),
        ("efficientvit_mit", "efficientvit_b0", {}, S, "head.in_conv", "NCHW", (3, 3), "conv"),
        ("efficientvit_msra", "efficientvit_m0", {}, L, "stages.2", "NCHW", (3, 3), "stage"),
        ("eva", "eva02_tiny_patch14_336", _img(56), (56, 56), "blocks.11", "tokens", (4, 4),
         "avg"),
        ("fasternet", "fasternet_t0", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("fastvit", "fastvit_t8", {}, S, "final_conv", "NCHW", (3, 3), "conv"),
        ("focalnet", "focalnet_tiny_srf", {}, S, "norm", "NCHW", (3, 3), "norm"),
        ("gcvit", "gcvit_xxtiny", _img(96), S, "stages.3", "NCHW", (3, 3), "stage"),
        ("gemma4_vit", "gemma4_vit_167m",
         {**_img(48, 96), **SMALL, "head_dim": 32, "intermediate_size": 128}, (48, 96),
         "encoder", "tokens", (3, 6), "encoder"),
        ("ghostnet", "ghostnet_050", {}, S, "blocks", "NCHW", (3, 3), "stage"),
        ("hardcorenas", "hardcorenas_b", {}, S, "blocks.6", "NCHW", (3, 3), "stage"),
        ("hgnet", "hgnetv2_b0", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("hiera", "hiera_tiny_224", _img(96, 128), (96, 128), "blocks.11", "tokens", (3, 4),
         "avg"),
        ("hieradet_sam2", "hieradet_small", {}, S, "blocks.15", "NHWC", (3, 3), "swin"),
        ("hrnet", "hrnet_w18_small", {}, S, "final_layer", "NCHW", (3, 3), "conv"),
        ("iformer", "iformer_t", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("inception_next", "inception_next_atto", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("inception_resnet_v2", "inception_resnet_v2", {}, L, "conv2d_7b", "NCHW", (3, 3),
         "conv"),
        ("inception_v3", "inception_v3", {}, L, "Mixed_7c", "NCHW", (3, 3), "stage"),
        ("inception_v4", "inception_v4", {}, L, "features.21", "NCHW", (3, 3), "stage"),
        ("lcnetv2", "lcnetv2_small", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("levit", "levit_128s", _img(384), (384, 384), "stages.2", "tokens", (6, 6), "avg"),
        ("lowformer", "lowformer_b0", {}, S, "in_conv", "NCHW", (3, 3), "conv"),
        ("mambaout", "test_mambaout", {}, (96, 160), "stages.3", "NHWC", (3, 5), "swin"),
        ("maxxvit", "test_coatnet", _img(96), S, "norm", "NCHW", (3, 3), "norm"),
        ("maxxvit", "test_maxvit", _img(192), (192, 192), "norm", "NCHW", (6, 6), "norm"),
        ("metaformer", "poolformerv2_s12", {}, (96, 160), "stages.3", "NCHW", (3, 5), "stage"),
        ("mlp_mixer", "gmlp_ti16_224", _img(64), (64, 64), "blocks.29", "tokens", (4, 4), "avg"),
        ("mobilenetv3", "mobilenetv3_small_050", {}, S, "blocks.5", "NCHW", (3, 3), "stage"),
        ("mobilenetv5", "mobilenetv5_base", {}, (128, 128), "msfa", "NCHW", (16, 16), "conv"),
        ("mobilevit", "mobilevit_xxs", {}, S, "final_conv", "NCHW", (3, 3), "conv"),
        ("mvitv2", "mvitv2_tiny", _img(96), S, "norm", "tokens", (3, 3), "tokens"),
        ("naflexvit", "naflexvit_base_patch16_parfac_gap", SMALL, (64, 96), "blocks.1", "tokens",
         (4, 6), "avg"),
        ("nasnet", "nasnetalarge", {}, S, "cell_17", "NCHW", (3, 3), "stage"),
        ("nest", "nest_tiny", _img(128), (128, 128), "norm", "NHWC", (8, 8), "nhwc"),
        ("nextvit", "nextvit_small", {}, S, "norm", "NCHW", (3, 3), "norm"),
        ("nfnet", "test_nfnet", {}, S, "final_conv", "NCHW", (3, 3), "conv"),
        ("pit", "pit_ti_224", _img(96), S, "transformers.2.blocks.3.norm1", "tokens", (3, 3),
         "cls"),
        ("pnasnet", "pnasnet5large", {}, S, "cell_11", "NCHW", (3, 3), "stage"),
        ("pvt_v2", "pvt_v2_b0", {}, (96, 128), "stages.3", "NCHW", (3, 4), "stage"),
        ("qwen3_vit", "qwen3_vit_88m", {**_img(64, 96), **SMALL}, (64, 96), "encoder",
         "NHWC", (4, 6), "encoder"),
        ("rdnet", "rdnet_tiny", {}, S, "dense_stages.6", "NCHW", (3, 3), "stage"),
        ("regnet", "regnetx_002", {}, S, "s4", "NCHW", (3, 3), "stage"),
        ("repghost", "repghostnet_050", {}, S, "blocks", "NCHW", (3, 3), "stage"),
        ("repvit", "repvit_m1", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("res2net", "res2next50", {}, S, "layer4", "NCHW", (3, 3), "stage"),
        ("resnest", "resnest14d", {}, S, "layer4", "NCHW", (3, 3), "stage"),
        ("resnet", "test_resnet", {}, (96, 160), "layer4", "NCHW", (3, 5), "stage"),
        ("resnetv2", "resnetv2_18", {}, S, "norm", "NCHW", (3, 3), "norm"),
        ("rexnet", "rexnet_100", {}, S, "features", "NCHW", (3, 3), "stage"),
        ("selecsls", "selecsls42", {}, L, "head.3", "NCHW", (3, 3), "conv"),
        ("senet", "legacy_seresnet18", {}, S, "layer4", "NCHW", (3, 3), "stage"),
        ("sequencer", "sequencer2d_s", _img(64, 96), (64, 96), "norm", "NHWC", (4, 6), "nhwc"),
        ("shvit", "shvit_s1", {}, L, "stages.2", "NCHW", (3, 3), "stage"),
        ("sknet", "skresnet18", {}, S, "layer4", "NCHW", (3, 3), "stage"),
        ("starnet", "starnet_s050", {}, S, "norm", "NCHW", (3, 3), "norm"),
        ("swiftformer", "swiftformer_xs", {}, S, "norm", "NCHW", (3, 3), "norm"),
        ("swin_transformer", "swin_tiny_patch4_window7_224", {**_img(224, 96), "window_size": 3},
         (224, 96), "norm", "NHWC", (7, 3), "nhwc"),
        ("swin_transformer_v2", "swinv2_tiny_window8_256", _img(128, 96), (128, 96), "norm",
         "NHWC", (4, 3), "nhwc"),
        ("swin_transformer_v2_cr", "swinv2_cr_tiny_224", _img(96), S, "stages.3", "NCHW", (3, 3),
         "stage"),
        ("tiny_vit", "tiny_vit_5m_224", {}, L, "stages.3", "NCHW", (5, 5), "stage"),
        ("tnt", "tnt_s_legacy_patch16_224", _img(64), (64, 64), "blocks.11.norm_out", "tokens",
         (4, 4), "cls"),
        ("tresnet", "tresnet_m", {}, S, "body.layer4", "NCHW", (3, 3), "stage"),
        ("twins", "twins_svt_small", _img(96), S, "norm", "tokens", (3, 3), "tokens"),
        ("vgg", "vgg11", {}, (64, 64), "features.18", "NCHW", (4, 4),
         "conv"),
        ("visformer", "visformer_tiny", _img(96), S, "norm", "NCHW", (3, 3), "norm"),
        ("vision_transformer", "test_vit", _img(64, 96), (64, 96), "blocks.5.norm1", "tokens",
         (4, 6), "cls"),
        ("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", _img(96), S, "blocks.11.norm1",
         "tokens", (3, 3), "cls"),
        ("vision_transformer_relpos", "test_vit_relpos", _img(64), (64, 64), "blocks.8", "tokens",
         (4, 4), "avg"),
        ("vision_transformer_sam", "samvit_base_patch16_224", {**_img(64), **SMALL}, (64, 64),
         "neck", "NCHW", (4, 4), "norm"),
        ("vitamin", "vitamin_small_224", _img(64), (64, 64), "blocks.13", "tokens", (4, 4),
         "avg"),
        ("volo", "volo_d1_224", _img(64), (64, 64), "network.4", "NHWC", (4, 4), "gather"),
        ("vovnet", "ese_vovnet19b_slim_dw", {}, S, "stages.3", "NCHW", (3, 3), "stage"),
        ("xception", "legacy_xception", {}, S, "bn4", "NCHW", (3, 3), "conv"),
        ("xception_aligned", "xception41p", {}, S, "blocks.12", "NCHW", (3, 3), "stage"),
        ("xcit", "xcit_nano_12_p8_224", _img(64), (64, 64), "blocks.11", "tokens", (8, 8),
         "gather"),
    )
]  # fmt: skip

# torchvision's families have no names of their own but the modules of `torchvision.models`.
TORCHVISION = [
    Row(*row)
    for row in (
        ("alexnet", "alexnet", {}, L, "features.10", "NCHW", (9, 9), "conv"),
        ("convnext", "convnext_tiny", {}, S, "features", "NCHW", (3, 3), "stage"),
        ("densenet", "densenet121", {}, S, "features", "NCHW", (3, 3), "norm"),
        ("efficientnet", "efficientnet_b0", {}, S, "features", "NCHW", (3, 3), "conv"),
        ("efficientnet", "efficientnet_v2_s", {}, S, "features", "NCHW", (3, 3), "conv"),
        ("googlenet", "googlenet", {"init_weights": False}, S, "inception5b", "NCHW", (3, 3),
         "stage"),
        ("inception", "inception_v3", {"init_weights": False}, L, "Mixed_7c", "NCHW", (3, 3),
         "stage"),
        ("maxvit", "maxvit_t", {}, (224, 224), "blocks.3", "NCHW", (7, 7), "stage"),
        ("mnasnet", "mnasnet0_5", {}, (96, 160), "layers", "NCHW", (3, 5), "conv"),
        ("mobilenetv2", "mobilenet_v2", {}, S, "features", "NCHW", (3, 3), "conv"),
        ("mobilenetv3", "mobilenet_v3_small", {}, S, "features", "NCHW", (3, 3), "conv"),
        ("regnet", "regnet_y_400mf", {}, S, "trunk_output", "NCHW", (3, 3), "stage"),
        ("resnet", "resnet18", {}, (96, 160), "layer4", "NCHW", (3, 5), "stage"),
        ("resnet", "resnext50_32x4d", {}, S, "layer4", "NCHW", (3, 3), "stage"),
        ("resnet", "wide_resnet50_2", {}, S, "layer4", "NCHW", (3, 3), "stage"),
        ("shufflenetv2", "shufflenet_v2_x0_5", {}, S, "conv5", "NCHW", (3, 3), "conv"),
        ("squeezenet", "squeezenet1_1", {}, S, "classifier.1", "NCHW", (5, 5), "scores"),
        ("swin_transformer", "swin_t", {}, (96, 160), "norm", "NHWC", (3, 5), "nhwc"),
        ("swin_transformer", "swin_v2_t", {}, S, "norm", "NHWC", (3, 3), "nhwc"),
        ("vgg", "vgg11", {}, (64, 64), "features.18", "NCHW", (4, 4), "conv"),
        ("vision_transformer", "vit_b_16", {"image_size": 64}, (64, 64),
         "encoder.layers.encoder_layer_11.ln_1", "tokens", (4, 4), "cls"),
    )
]  # fmt: skip
