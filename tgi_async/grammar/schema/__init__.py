"""JSON Schemas (Draft 2020-12), checked and rewritten into the few keywords that engines have."""
