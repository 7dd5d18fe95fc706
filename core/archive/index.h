/* Where the files of a tar are in it, so that layers can be read in place.
 *
 * Run without privileges, since it parses: see image/archive.lua. Prints a line "OFFSET SIZE NAME" a
 * regular file, for names of [A-Za-z0-9._/-] alone: those of an image layout. */
#ifndef TP_INDEX_H
#define TP_INDEX_H

#include "../error.h"

int tp_index(int fd, struct tp_error *err);

#endif
