"""Studies with the public names of the rooms above: analyze and Report, models, data, figures, the command line."""
