"""How far correct code is from the limits, and wrong code beyond them: what ci/calibrate runs.

plan      sources of arithmetic, cases and seeds; in which order they are run
workers   one process per engine that writes trace files: what runs there is in transformers_worker
          and engine_worker; live: a transformers model with the weights of a case; sums: other
          orders of summation under unchanged code
judging   dsv32-verify on a chunk of trace files; what is kept of its report
mutants   every bug of the catalogue, planted in the reference
page      docs/calibration.md
"""
