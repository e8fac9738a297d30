"""An SVG picture: boxes, lines, arrows, bars, words. The scripts beside it draw the pictures of docs/ with it."""

from html import escape

COLOURS = {"A": "#56b4e9", "B": "#e69f00", "C": "#2bb68a", "D": "#d58fb8"}  # one for each parent; told apart with any colour vision
INK, PALE, IDLE = "#1f2328", "#6e7781", "#eaeef2"


class Picture:
    """An SVG file on a white card, so that it can be read on a light and on a dark page."""

    def __init__(self, name, width, height, title):
        self.name = name
        self.parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
                      ' font-family="Helvetica, Arial, sans-serif">',
                      f"<title>{escape(title)}</title>",
                      '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
                      f'<path d="M0 0L10 5L0 10z" fill="{PALE}"/></marker></defs>',
                      f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10" fill="#ffffff" stroke="#d0d7de"/>']

    def text(self, x, y, words, size=13, anchor="middle", colour=INK, bold=False):
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>')

    def lines(self, x, y, words, size=13, **style):
        for i, line in enumerate(words.split("\n")):
            self.text(x, y + i * size * 1.35, line, size, **style)

    def box(self, x, y, width, height, fill, label="", chosen=False, dashed=False, size=13):
        stroke = f'stroke="{INK}" stroke-width="2.5"' if chosen else f'stroke="{PALE}" stroke-width="1"'
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" {stroke}{dash}/>')
        if label:
            self.text(x + width / 2, y + height / 2 + size * 0.36, label, size)

    def line(self, points, colour=PALE, width=1.5, arrow=False, dashed=False):
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        more = (' marker-end="url(#head)"' if arrow else "") + (' stroke-dasharray="4 3"' if dashed else "")
        self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{more}/>')

    def arrow(self, x1, y1, x2, y2):
        self.line([(x1, y1), (x2, y2)], arrow=True)

    def bars(self, x, base, experts, step=46, scale=190):
        """One bar for each (label, value, chosen), with the value above and the label below it."""
        for i, (label, value, chosen) in enumerate(experts):
            left, height = x + i * step, abs(value) * scale
            top = base - height if value >= 0 else base
            self.box(left, top, step - 12, height, COLOURS[label[0]], chosen=chosen, dashed=len(label) > 1)
            self.text(left + (step - 12) / 2, top - 6 if value >= 0 else top + height + 14, f"{value:.2f}".replace("-", "−"), 11, colour=PALE)
            self.text(left + (step - 12) / 2, base + 17 if value >= 0 else base - 7, label, 13, bold=chosen)
        self.line([(x - 8, base), (x + len(experts) * step - 4, base)], INK, 1)

    def svg(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"
