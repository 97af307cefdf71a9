"""The operations with their variants and the shapes that the networks of this suite give them, a file each."""

from kernels.cases.augment import AUGMENT
from kernels.cases.batch_norm_act import BATCH_NORM_ACT
from kernels.cases.conv_bn_act import CONV_BN_ACT
from kernels.cases.instance_norm_act import INSTANCE_NORM_ACT
from kernels.cases.muon import MUON
from kernels.cases.product_conv import PRODUCT_CONV
from kernels.cases.residual import RESIDUAL
from kernels.cases.rmsprop_clamp import RMSPROP_CLAMP
from kernels.cases.upsample_conv import UPSAMPLE_CONV

SPECS = {
    spec.name: spec
    for spec in (
        BATCH_NORM_ACT,
        CONV_BN_ACT,
        RESIDUAL,
        AUGMENT,
        PRODUCT_CONV,
        UPSAMPLE_CONV,
        INSTANCE_NORM_ACT,
        RMSPROP_CLAMP,
        MUON,
    )
}
