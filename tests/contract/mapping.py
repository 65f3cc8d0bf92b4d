"""What most tests of the contract begin with."""


def mapped(driver, arena, page, count, first=0):
    """``count`` fresh pages, mapped from ``first`` on, readable and writable."""
    entries = [
        (arena + (first + i) * page, driver.create(page, (first + i) * page), page) for i in range(count)
    ]
    driver.map(entries)
    driver.set_access(entries)
    return entries
