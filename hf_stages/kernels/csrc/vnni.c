#if defined(__x86_64__)
#include "lowbit.h"
static int no(void){return 0;}
const lb_backend lb_avx512_vnni={"avx512-vnni",0,no,0,0,0,0,0}, lb_avx_vnni={"avx-vnni",0,no,0,0,0,0,0};
#endif
