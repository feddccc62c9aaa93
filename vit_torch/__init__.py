"""The Vision Transformer in PyTorch, the mirror of `vit_numpy`.

Shapes are written with these letters: images (B, C, H, W); patch side P; patches
N = HW/P²; tokens T = N + prefix tokens; width D; heads h; head width Dh; MLP width M;
classes K. A gradient is `d` + the name of what it is the gradient of.
"""
