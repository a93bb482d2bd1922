"""Meeting a relay without joining the mesh, to find out what is wrong."""
