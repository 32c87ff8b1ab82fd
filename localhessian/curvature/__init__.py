"""Where networks and spectra meet: local Hessians as operators with their factor."""

from localhessian.curvature._local_hessian import local_hessian as local_hessian
