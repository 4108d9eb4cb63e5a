/*
 * photon train: the centralized baseline.
 */
#include "client/cli/cmd.h"
#include "client/solo_main.h"

static int train(int argc, char **argv)
{
    return solo_main("photon train", argc, argv);
}

const struct cmd cmds_train[] = {
    {"train", NULL, "train on this machine alone: the centralized baseline", train, .trains = true},
    {0}};
