"""Who belongs to the mesh: the secret, or the authority with its invites, certificates and bans."""
