"""Curvature of any PyTorch model: Hessian-vector products, eigenvalues with error bounds, layers, theory."""
