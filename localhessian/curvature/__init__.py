"""Where networks and spectra meet: local Hessians as operators with their factor."""
