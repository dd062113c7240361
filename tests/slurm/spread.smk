"""A job over two nodes with both GPUs of each, as training through verl over several is; a program plays Ray."""


localrules:
    all,


rule all:
    input:
        "out/done",


rule spread:
    output:
        "out/done",
    threads: 2
    resources:
        mem_mb=700,
        runtime=10,
        gpu=0,
        gres="gpu:h200:2",
        nodes=2,
        tasks=0,
        slurm_partition="gpus",
    shell:
        "python spread.py && touch {output}"
