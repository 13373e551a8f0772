"""Input formats of the packer."""
