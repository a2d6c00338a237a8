"""The status page: `/` on the metrics address, for a person with a browser.

`site` answers its requests and says who may ask, `catalog` searches Services and describes them as values of
`listed`, `recent` keeps the last syncs and warnings. The page itself is `page.html` with `page.css` and
`page.js` in it; it loads nothing else, and asks for what it shows in bounded parts. Nothing is computed while
no page is open.
"""
