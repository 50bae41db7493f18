"""A sweep of 3 tasks and 2 generators that is killed and resumed, and what is read of it: tables, pictures, page."""

import subprocess
import sys

import pytest
from chromium import chromium_page, find_chromium
from sweep_cells import (
    GENERATORS,
    SCRIPT,
    TASKS,
    cell_processes,
    check_cells,
    check_tables_pictures_and_page,
    kill_a_cell_and_the_runner,
    sweep_flags,
    wait_for,
)


def check_shown_page(path, rougeL, browser_folder):
    """The page in a browser shows the results, and a cell with all its curves."""
    with chromium_page(browser_folder) as page:
        page.open(path)
        colour = 'document.querySelector("#overview .controls:has(+ #scale) select")'
        page.run(f'{colour}.value = "rougeL"; {colour}.dispatchEvent(new Event("change"))')  # in place of the gains
        shown = page.run('[...document.querySelectorAll("#grid tbody td")].map(cell => cell.textContent)')
        assert shown == [f'{100 * rougeL[name, task]:.1f}' for task in TASKS for name in GENERATORS]
        page.run('document.querySelector("#grid tbody a").click()')
        page.wait('document.querySelector("#cell article")')
        assert page.run('document.querySelectorAll("#cell svg.chart").length') == 4 and page.messages == []


@pytest.mark.slow
def test_a_killed_sweep_is_resumed_and_tables_pictures_and_page_show_its_results(sweep_data, tmp_path, capsys):
    folder = tmp_path / 'out'
    command = [sys.executable, SCRIPT, *sweep_flags(sweep_data, folder, '--workers', '2', '--checkpoint_every', '5')]
    kill_a_cell_and_the_runner(command, folder)
    wait_for(lambda: not cell_processes(folder), 10)  # killed with the runner
    status = subprocess.run([*command, '--status'], capture_output=True, text=True)
    assert status.returncode == 1 and ' stopped' in status.stdout and ' running' not in status.stdout
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, '6 done of 6\n'), ended.stderr
    check_cells(folder)
    rougeL, page_file = check_tables_pictures_and_page(sweep_data, folder, tmp_path, capsys)
    if find_chromium() is not None:
        check_shown_page(page_file, rougeL, tmp_path / 'browser')
