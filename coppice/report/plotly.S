/* plotly.min.js as bytes between two symbols. */
        .section .rodata
        .global coppice_plotly_begin
        .global coppice_plotly_end
coppice_plotly_begin:
        .incbin COPPICE_PLOTLY_JS
coppice_plotly_end:
        .byte 0
        .section .note.GNU-stack,"",%progbits
