"""What imports what, file by file; the arrows between packages are contracts in pyproject.toml."""

from graphlib import TopologicalSorter

import grimp


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for type checking alone count too."""
    graph = grimp.build_graph("flatlab", "analysis", "figures", "benchmarks", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "flatlab.cli.main" in imports
    TopologicalSorter(imports).prepare()  # raises CycleError with the circle
