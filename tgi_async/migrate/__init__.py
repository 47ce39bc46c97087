"""`tgi-async migrate`: what a way of starting TGI becomes here, line by line."""
