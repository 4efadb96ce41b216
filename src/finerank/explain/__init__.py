"""Why a model says what it says: the past that lit up, the fields that count, the values that lift."""
