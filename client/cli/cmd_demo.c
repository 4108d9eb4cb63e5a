#include "client/cli/cmd.h"
const struct cmd cmds_demo[] = {{0}};
