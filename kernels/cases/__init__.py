"""The operations with their variants, at the shapes of this suite's networks, one file each."""

from wallclock.kernels.cases.augment import AUGMENT
from wallclock.kernels.cases.batch_norm_act import BATCH_NORM_ACT
from wallclock.kernels.cases.conv_bn_act import CONV_BN_ACT
from wallclock.kernels.cases.instance_norm_act import INSTANCE_NORM_ACT
from wallclock.kernels.cases.muon import MUON
from wallclock.kernels.cases.product_conv import PRODUCT_CONV
from wallclock.kernels.cases.residual import RESIDUAL
from wallclock.kernels.cases.rmsprop_clamp import RMSPROP_CLAMP
from wallclock.kernels.cases.upsample_conv import UPSAMPLE_CONV

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
