"""What runs inside the isolated environment of verl; the only place that imports verl, Ray and vLLM."""
