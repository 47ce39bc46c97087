"""How models write calls of tools, and what they think before they answer."""
