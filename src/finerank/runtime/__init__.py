"""What a server needs: encoder, history rule, profile store, scorer. numpy and the standard library; never torch or polars."""
