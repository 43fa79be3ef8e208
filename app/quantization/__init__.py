"""`softserve quantize`: INT8 weights for INT8 activations, calibrated on a text."""
