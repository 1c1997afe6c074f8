"""Residual add, dropout and layer norm in one pass: s = residual + dropout(x), y = (s - mean) * rstd * weight + bias."""
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------------------
# The plain torch twin


def torch_add_layer_norm(x, residual, weight, bias, eps=1e-5, dropout_p=0.0):
    """The same function in plain torch -> (y, s); see `kernels.add_layer_norm` for the arguments."""
    s = F.dropout(x, dropout_p) if dropout_p else x
    s = s if residual is None else residual + s
    return F.layer_norm(s, weight.shape, weight, bias, eps), s
