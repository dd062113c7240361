"""Jobs of known behaviour for the profile `slurm`: what they ask for, and what happens when it was too little."""

DEVICES, MEMBERS = range(4), range(6)


localrules:
    all,


rule all:
    input:
        expand("out/device-{n}", n=DEVICES),
        expand("out/member-{n}", n=MEMBERS),
        "out/hungry",
        "out/slow",


rule device:
    output:
        "out/device-{n}",
    resources:
        mem_mb=700,
        runtime=10,
        gpu=1,
        gpu_model="h200",
        slurm_partition="apart",
    shell:
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {output}; date +%s >> {output}; sleep 30; date +%s >> {output}"


rule member:
    output:
        "out/member-{n}",
    resources:
        mem_mb=700,
        runtime=10,
        slurm_partition="apart",
    shell:
        "echo $SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID {wildcards.n} > {output}"


rule hungry:
    output:
        "out/hungry",
    resources:
        mem_mb=lambda wildcards, attempt: 700 * attempt,
        runtime=10,
        slurm_partition="apart",
    shell:
        "echo begun >> hungry.log; python3 -c 'import time; x = bytearray(800 << 20); time.sleep(20)' && touch {output}"


rule slow:
    output:
        "out/slow",
    resources:
        mem_mb=700,
        runtime=lambda wildcards, attempt: attempt * attempt,
        slurm_partition="apart",
    shell:
        "squeue -h -j $SLURM_JOB_ID -o %l >> slow.log; [ $(wc -l < slow.log) = 2 ] || sleep 300; touch {output}"
