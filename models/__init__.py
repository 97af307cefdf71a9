"""Networks (`darknet`, `wide_resnet`, `sprint`), the layers they share, and the recipes that train them."""
