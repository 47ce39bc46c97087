"""JSON Schemas of any draft, checked and rewritten into the few keywords that engines have."""
