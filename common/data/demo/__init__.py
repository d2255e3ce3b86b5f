"""Stand-ins for the published data sets, in the same files and formats, from what scikit-learn and matplotlib ship.

They let every task train and every reader be tested without a download. They are not the benchmarks: a number obtained
on them is always printed with the word "demo".
"""
